"""Lessons, groups, nights and prompts as pages in a browser, without a build step."""
