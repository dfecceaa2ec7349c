"""Jobs, such as a training or a cross-validation. The only room that imports all other rooms."""
