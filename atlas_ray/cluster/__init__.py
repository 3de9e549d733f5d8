"""Where the science meets Ray and MLflow; nothing outside this package (and rounds, job, jobs) knows either."""
