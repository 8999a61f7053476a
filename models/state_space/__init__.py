"""The parts of a deep state-space model: transitions, emissions, approximate posteriors, particle methods."""
