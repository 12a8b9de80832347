"""One self-contained page about a run or a study: no script, no request, every name escaped."""
