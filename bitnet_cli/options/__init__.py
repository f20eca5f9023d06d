"""The options of every command, one file a command: names and help. The command itself is imported when it is called."""
