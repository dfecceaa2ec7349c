"""What a job is: the only room that knows every room."""
