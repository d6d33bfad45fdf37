"""The arithmetic of randomized telescoping: levels, weights, second moments, the best odds."""
