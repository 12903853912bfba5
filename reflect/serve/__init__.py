"""`reflect serve`: the profile's model behind the chat completions API, or the same in front of
another server."""
