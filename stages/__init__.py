"""One module per stage; run.py is shared; quick.py and trial.py run several stages in one process."""
