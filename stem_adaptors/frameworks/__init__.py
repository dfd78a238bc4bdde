"""Token datasets and classifiers in the shapes that training frameworks expect. Modules are loaded when they are used."""
