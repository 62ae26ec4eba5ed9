"""Dataset formats that become a training store: LeRobot, LIBERO HDF5."""
