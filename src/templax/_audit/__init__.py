"""Every byte of a checkpoint compared with its checksum."""
