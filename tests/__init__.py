"""A package, so that its modules are found before a package of the same name that torch-fidelity installs."""
