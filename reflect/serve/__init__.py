"""`reflect serve`: the profile's model, or another server, behind the chat completions API."""
