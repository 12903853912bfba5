"""A night turns a lesson into weights, and a rollback undoes it.

Run:     python sleep_and_rollback.py
It does: 1. practise the taskset `letters` with the built-in pocket model, which writes a lesson,
         2. sleep: train a LoRA adapter on the lesson, test it on holdout tasks, promote it if it
            passes,
         3. roll back: the adapter is off, and the lesson is in the prompt again.
Prints:  after each step the number of lessons in the prompt of a task, and the mean reward on the
         same holdout tasks.

The database is lessons.db in this folder, and the adapter is in .reflect/. The same steps on the
command line: reflect run letters -n 8, reflect sleep, reflect adapters rollback.
"""

import reflect

# Six seconds of training and 16 tasks in each test of the gate. The defaults take minutes, and
# suit nights with several lessons.
SHORT = {
    "budget": 0.1,
    "batch": 20,
    "anchors": 40,
    "tasks_per_lesson": 8,
    "fewest_tasks": 16,
    "gate_tasks": 16,
}


def show(step, ws, arm):
    """Measure the model in one arm: base, lessons, or both (adapter and lessons, as tasks run)."""
    result = ws.evaluate("letters", arms=[arm], n=24)[arm]
    lessons = ws.prompt("letters").lessons
    print(f"{step}: {len(lessons)} lessons in the prompt, reward {result.reward:.2f}", flush=True)


if __name__ == "__main__":
    ws = reflect.open("lessons.db", model="pocket")
    show("before", ws, "base")
    ws.run("letters", n=8, k=8, seed=0)
    for lesson in ws.lessons:
        print(f"lesson {lesson.id}: when {lesson.when}: {lesson.do}")
    show("after practice", ws, "lessons")

    night = ws.sleep(**SHORT)
    print(f"night: {night.status}, {night.adapter} {night.reason}")
    show("after the night", ws, "both")

    removed, _ = ws.rollback()
    print(f"rolled back: {removed.name}")
    show("after the rollback", ws, "lessons")
