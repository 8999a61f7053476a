"""The linear-Gaussian state-space model, exactly: likelihood, filter, smoother, fit, certificate."""
