"""Lessons become weights in a night, and a rollback undoes it.

Run:     python sleep_and_rollback.py
It does: 1. practise the taskset `dialect` with the built-in pocket model, which writes lessons,
         2. sleep: train a LoRA adapter on the lessons, test it on holdout tasks, promote it if it passes,
         3. roll back: the adapter is off, and the lessons are in the prompt again.
Prints:  after each step, what the prompt of one task contains, and the mean reward on the same holdout tasks.

The database is lessons.db in this folder, and the adapter is in .reflect/. The same steps on the command line:
reflect run dialect -n 24, reflect sleep --budget 10s, reflect adapters rollback.
"""

import reflect


def show(step: str, ws, arm: str) -> None:
    """The number of lessons in the prompt of a task, and the reward as the model answers now."""
    result = ws.evaluate("dialect", arms=[arm], n=24)[arm]
    lessons = len(ws.prompt("dialect").lessons)
    print(f"{step}: {lessons} lessons in the prompt, reward {result.reward:.2f}", flush=True)


if __name__ == "__main__":
    ws = reflect.open("lessons.db", model="pocket")
    show("before", ws, "base")
    ws.run("dialect", n=24, k=8, seed=0)
    for lesson in ws.lessons:
        print(f"lesson {lesson.id}: when {lesson.when}: {lesson.do}")
    show("after practice", ws, "lessons")

    night = ws.sleep(budget=10 / 60)  # minutes of training; the tests on holdout take longer
    print(f"night: {night.status}, adapter {night.adapter}")
    show("after the night", ws, "both")

    ws.rollback()
    show("after the rollback", ws, "both")
