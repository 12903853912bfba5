"""The tasksets' own modules, for the scripts that train and prove the pocket model on them."""

from reflect.config import shipped
from reflect.tasksets.imports import load_module

letters = load_module(shipped("tasks") / "letters.py")
dialect = load_module(shipped("tasks") / "dialect.py")
calc = load_module(shipped("tasks") / "calc.py")
shop = load_module(shipped("tasks") / "shop.py")
