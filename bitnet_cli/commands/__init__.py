"""The commands, one file each: parse the intent, call the library, print. Imported when called."""
