"""The reviewer: a second adapter, used in reflections only, trained on what trials have shown."""
