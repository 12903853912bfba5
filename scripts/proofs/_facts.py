"""Facts that no model knows, each with questions in two wordings: what a person teaches by hand.

DEVELOPMENT is a small hotel, on which the defaults of the night were chosen. OFFICE is what `scripts/proofs/real` measures;
its holdout questions were written once and were never used to choose anything. Both have twelve facts with five practice
questions and five holdout questions each; no wording is in both.
"""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """A lesson (`when`, `do`), what a right answer contains, and the questions about it."""

    when: str
    do: str
    answer: str
    practice: tuple[str, str, str, str, str]
    holdout: tuple[str, str, str, str, str]


DEVELOPMENT = (
    Fact(
        "asked when breakfast starts at the inn", "say that breakfast starts at 7:20", "7:20",
        ("When does breakfast start at the inn?", "What time does the inn begin serving breakfast?",
         "From what time can guests of the inn have breakfast?", "I am staying at the inn. When is breakfast?",
         "Tell me the hour at which the inn's breakfast begins."),
        ("How early can I eat breakfast at the inn?", "At what time does the inn open its breakfast room?",
         "Please tell me the breakfast time of the inn.", "When do they start breakfast at the inn in the morning?",
         "The inn serves breakfast from when on?"),
    ),
    Fact(
        "asked for the wifi password of the inn", "say that the wifi password is bluepelican", "bluepelican",
        ("What is the wifi password of the inn?", "Which password do I need for the inn's wifi?",
         "How do I log in to the wifi at the inn?", "Can you give me the inn's wifi password?",
         "I need the password of the inn's wireless network."),
        ("What do I type to join the wifi at the inn?", "Please tell me the wifi password here at the inn.",
         "My phone asks for the inn's wifi password. What is it?", "What password does the wifi of the inn use?",
         "Do you know the wifi password for guests of the inn?"),
    ),
    Fact(
        "asked when guests must check out of the inn", "say that check-out is by 11:45", "11:45",
        ("When must I check out of the inn?", "What is the check-out time of the inn?",
         "Until when can I stay in my room at the inn on the last day?", "By what time do guests check out of the inn?",
         "Tell me when check-out at the inn is."),
        ("How late can I check out at the inn?", "What time do I have to leave my room at the inn?",
         "Please tell me the latest check-out hour of the inn.", "When does check-out end at the inn?",
         "At what time is check-out for guests of the inn?"),
    ),
    Fact(
        "asked what parking costs at the inn", "say that parking costs 14 euros a night", "14 euros",
        ("What does parking cost at the inn?", "How much is a parking place at the inn?",
         "What is the price of parking my car at the inn?", "Is parking at the inn free?",
         "Tell me the parking fee of the inn."),
        ("How much do I pay to park at the inn?", "What do you charge for parking at the inn?",
         "I come by car. What does the inn's car park cost?", "Please tell me the price of the inn's parking.",
         "What is the cost of parking a car overnight at the inn?"),
    ),
    Fact(
        "asked who manages the inn", "say that the manager is Petra Lindqvist", "Lindqvist",
        ("Who manages the inn?", "Who is the manager of the inn?", "What is the name of the inn's manager?",
         "Who runs the inn?", "Whom do I ask for if I want the manager of the inn?"),
        ("Who is in charge of the inn?", "Please tell me the name of the manager at the inn.",
         "Which person manages the inn?", "The inn's manager is called what?", "Can you name the person who runs the inn?"),
    ),
    Fact(
        "asked where the pool of the inn is", "say that the pool is on the fourth floor", "fourth floor",
        ("Where is the pool of the inn?", "On which floor is the inn's pool?", "How do I get to the pool at the inn?",
         "Does the inn have a pool, and where?", "Tell me where I can swim at the inn."),
        ("Which floor do I go to for the pool of the inn?", "Where can I find the inn's swimming pool?",
         "Please tell me where the pool at the inn is.", "I want to swim. Where does the inn have its pool?",
         "What is the location of the pool in the inn?"),
    ),
    Fact(
        "asked which number to call for a taxi at the inn", "say that the taxi number is 5518", "5518",
        ("Which number do I call for a taxi at the inn?", "What is the inn's taxi number?",
         "How do I get a taxi from the inn?", "Give me the number of the taxi for guests of the inn.",
         "I need a taxi at the inn. Which number is it?"),
        ("What number should I dial for a taxi from the inn?", "Please tell me the taxi number at the inn.",
         "Whom do I call at the inn for a taxi?", "How can guests of the inn order a taxi?",
         "What is the phone number for taxis at the inn?"),
    ),
    Fact(
        "asked when the inn picks up laundry", "say that laundry is picked up on Thursday", "Thursday",
        ("When does the inn pick up laundry?", "On which day is laundry picked up at the inn?",
         "Which day is laundry day at the inn?", "When is my laundry collected at the inn?",
         "Tell me the day on which the inn collects laundry."),
        ("What day does the inn collect the laundry?", "Please tell me when laundry is picked up at the inn.",
         "When can I give my laundry to the inn?", "The inn takes laundry on what day?",
         "Which day of the week does the inn do laundry?"),
    ),
    Fact(
        "asked where dogs may stay at the inn", "say that dogs may stay in the east wing", "east wing",
        ("Where may dogs stay at the inn?", "In which part of the inn are dogs allowed?", "Can I bring my dog to the inn?",
         "Which rooms of the inn take dogs?", "Tell me where my dog can stay at the inn."),
        ("Where in the inn can guests with dogs stay?", "Please tell me where dogs are allowed at the inn.",
         "I travel with a dog. Where do we stay at the inn?", "Which part of the inn is for dogs?",
         "Are dogs allowed anywhere at the inn?"),
    ),
    Fact(
        "asked for the code of the gym at the inn", "say that the gym code is 4417", "4417",
        ("What is the code of the gym at the inn?", "Which code opens the inn's gym?", "How do I get into the gym of the inn?",
         "Give me the door code of the inn's gym.", "I need the code for the gym at the inn."),
        ("What code do I enter at the inn's gym?", "Please tell me the gym code of the inn.",
         "How can I open the gym door at the inn?", "The gym of the inn is locked. What is its code?",
         "Do you know the code to the gym of the inn?"),
    ),
    Fact(
        "asked where the boat trip of the inn leaves", "say that the boat trip leaves from pier 6", "pier 6",
        ("Where does the boat trip of the inn leave?", "From which pier does the inn's boat trip start?",
         "Where do I get on the boat of the inn?", "Which pier is the inn's boat trip from?",
         "Tell me where the inn's boat trip begins."),
        ("Where do we meet for the boat trip of the inn?", "Please tell me from where the inn's boat departs.",
         "The inn's boat leaves from which pier?", "What is the starting point of the inn's boat trip?",
         "Where should I go for the boat tour of the inn?"),
    ),
    Fact(
        "asked where lost things are kept at the inn", "say that lost things are kept in room 102", "102",
        ("Where are lost things kept at the inn?", "I lost my hat at the inn. Where do I ask?",
         "In which room does the inn keep lost things?", "Where is the lost and found of the inn?",
         "Tell me where the inn keeps what guests have lost."),
        ("Where can I find things that I lost at the inn?", "Please tell me which room has the inn's lost property.",
         "Where does the inn put lost items?", "I left my scarf at the inn. Where is it kept?",
         "Which room is the lost and found at the inn?"),
    ),
)  # fmt: skip

OFFICE = (
    Fact(
        "asked when the office closes", "say that the office closes at 16:30", "16:30",
        ("When does the office close?", "What time does the office close?", "At what hour is the office closed?",
         "Tell me the closing time of the office.", "Until when is the office open?"),
        ("How late is the office open?", "What is the closing time of the office?", "When do they close the office?",
         "Please tell me when the office closes.", "At what time will the office close today?"),
    ),
    Fact(
        "asked who the accountant of the office is", "say that the accountant is Maren Holt", "Holt",
        ("Who is the accountant of the office?", "What is the name of the office's accountant?",
         "Which person is the accountant in the office?", "Tell me who the accountant of the office is.",
         "Who works as the accountant of the office?"),
        ("What is the accountant of the office called?", "Please name the accountant of the office.",
         "Who is the office's accountant?", "Who does the job of accountant at the office?",
         "Could you tell me the accountant's name in the office?"),
    ),
    Fact(
        "asked for the code of the copier in the office", "say that the copier code is 7294", "7294",
        ("What is the code of the copier in the office?", "Which code does the office copier need?",
         "Give me the copier code of the office.", "What code do I enter at the copier of the office?",
         "Tell me the code for the copier in the office."),
        ("What number is the copier code in the office?", "Please tell me the code of the office copier.",
         "Which code starts the copier of the office?", "I am at the office copier. What is its code?",
         "What is the copier's code in our office?"),
    ),
    Fact(
        "asked what lunch costs in the office", "say that lunch costs 8 crowns", "8 crowns",
        ("What does lunch cost in the office?", "How much does lunch cost at the office?",
         "What is the price of lunch in the office?", "Tell me the cost of lunch in the office.",
         "What do we pay for lunch at the office?"),
        ("How much is lunch in the office?", "Please tell me what lunch at the office costs.",
         "What price does the office ask for lunch?", "What must I pay for lunch in the office?",
         "The office serves lunch. What does it cost?"),
    ),
    Fact(
        "asked where the printer of the office is", "say that the printer is in the basement", "basement",
        ("Where is the printer of the office?", "In which place is the office printer?",
         "Where do I find the printer in the office?", "Tell me where the printer of the office is.",
         "Where does the office keep its printer?"),
        ("Where can I find the office printer?", "Please tell me where the office's printer is.",
         "Where did they put the printer of the office?", "What is the location of the printer in the office?",
         "I look for the printer of the office. Where is it?"),
    ),
    Fact(
        "asked on which day the office is cleaned", "say that the office is cleaned on Wednesday", "Wednesday",
        ("On which day is the office cleaned?", "When is the office cleaned?", "What day do they clean the office?",
         "Tell me the day on which the office is cleaned.", "Which day of the week is the office cleaned?"),
        ("On what day does somebody clean the office?", "Please tell me the cleaning day of the office.",
         "Which day is the cleaning day of the office?", "When do the cleaners clean the office?",
         "The office is cleaned on what day?"),
    ),
    Fact(
        "asked for the phone number of the office", "say that the phone number is 60418", "60418",
        ("What is the phone number of the office?", "Which number do I call to reach the office?",
         "Give me the office's phone number.", "Tell me the phone number of the office.",
         "What number does the office have?"),
        ("How can I call the office? What is its phone number?", "Please tell me the number of the office phone.",
         "What is the office's telephone number?", "Which phone number belongs to the office?",
         "I want to phone the office. What is the number?"),
    ),
    Fact(
        "asked for the name of the cat of the office", "say that the cat is called Biscuit", "Biscuit",
        ("What is the name of the cat of the office?", "What is the office cat called?",
         "Which name does the cat of the office have?", "Tell me the name of the office cat.",
         "How is the cat in the office called?"),
        ("What do we call the cat of the office?", "Please tell me the office cat's name.",
         "The office has a cat. What is its name?", "What name did the office give its cat?",
         "Do you know the name of the cat in the office?"),
    ),
    Fact(
        "asked in which month the office has its party", "say that the party is in March", "March",
        ("In which month does the office have its party?", "When is the party of the office?",
         "What month is the office party in?", "Tell me the month of the office party.",
         "In what month is the party of the office?"),
        ("Which month is the party of the office?", "Please tell me in which month the office party is.",
         "What month does the office choose for its party?", "When in the year does the office have its party?",
         "The office gives a party. In which month?"),
    ),
    Fact(
        "asked which colour the door of the office has", "say that the door is turquoise", "turquoise",
        ("Which colour does the door of the office have?", "What colour is the office door?",
         "What is the colour of the door of the office?", "Tell me the colour of the office's door.",
         "In which colour is the door of the office painted?"),
        ("How is the door of the office painted?", "Please tell me what colour the office door is.",
         "The door of the office has what colour?", "What colour did they paint the office door?",
         "Which colour has the entrance door of the office?"),
    ),
    Fact(
        "asked where visitors of the office park", "say that visitors park behind the bakery", "bakery",
        ("Where do visitors of the office park?", "Where can visitors park at the office?",
         "Tell me where visitors of the office park their cars.", "Where is the parking for visitors of the office?",
         "In which place do visitors of the office park?"),
        ("Where should I park when I visit the office?", "Please tell me where visitors park at the office.",
         "Where do guests of the office leave their cars?", "Where is visitor parking of the office?",
         "I visit the office by car. Where do visitors park?"),
    ),
    Fact(
        "asked in which room the meetings of the office are", "say that meetings are in room 512", "512",
        ("In which room are the meetings of the office?", "Which room does the office use for meetings?",
         "Where are the meetings of the office?", "Tell me the room of the office's meetings.",
         "What room are the office meetings in?"),
        ("Which room are the office meetings in?", "Please tell me in which room the office has its meetings.",
         "What is the meeting room of the office?", "Where does the office hold its meetings?",
         "To which room do I go for a meeting of the office?"),
    ),
)  # fmt: skip
