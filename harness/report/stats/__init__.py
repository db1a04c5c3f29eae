"""Statistics of a report: means, intervals, paired tests and costs, over seeds and prompts."""
