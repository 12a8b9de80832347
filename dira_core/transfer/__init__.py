"""What pretrained weights are worth: labelled tasks, three ways to use them, honest scores."""
