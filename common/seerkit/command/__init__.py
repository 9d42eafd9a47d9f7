"""What commands are made of: parser, errors, flags."""
