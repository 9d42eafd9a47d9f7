"""How good a cached run is: image metrics, and a small classifier that judges generated Fashion-MNIST images."""
