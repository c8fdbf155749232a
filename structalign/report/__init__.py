"""Tables, figures and the page that a run leaves."""
