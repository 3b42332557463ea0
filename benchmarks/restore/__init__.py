"""The libraries that restore, and the processes they restore in."""
