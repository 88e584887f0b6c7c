"""Networks run over cells without gradient: blocks are read while others are computed."""
