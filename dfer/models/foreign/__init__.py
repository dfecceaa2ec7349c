"""Read weight files of other projects as data, without running code from them."""
