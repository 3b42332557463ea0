"""The libraries that save, and the processes they save in."""
