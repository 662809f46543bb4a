"""Problems and comparisons that tests of any backend share, a third party's too."""
