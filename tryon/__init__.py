"""The try-on library: knows try-on; knows no data set, no command line and no launcher."""
