"""Commands for people: `structalign <command>`."""
