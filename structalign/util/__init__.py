"""What every part of the program uses: errors, files, logging, processes, seeds."""
