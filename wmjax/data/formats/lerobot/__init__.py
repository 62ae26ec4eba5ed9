"""LeRobot datasets: reading v2.0, v2.1 and v3.0 (images or video), writing v3.0, conversion to a training store."""
