"""Pure torch: the terms of the objective. Knows no Ray, MLflow or Optuna."""
