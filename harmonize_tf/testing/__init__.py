"""What tests may use, this project's and its users': stand-ins on loopback for services that no test can reach."""
