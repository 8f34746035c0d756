"""What an encoder can be evaluated by: probes, rollouts, imitation."""
