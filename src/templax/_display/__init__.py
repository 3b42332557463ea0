"""Results as text and as JSON.

- `listing`: the text of `templax ls`
- `json_listing`: the JSON of `templax ls` and `templax steps`
- `json_reports`: the JSON of `templax check`, `templax plan` and `templax verify`
- `json`: renders the JSON of all commands
- `terminal`: prints text, in colour on a terminal
"""
