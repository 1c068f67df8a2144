"""GroundThink: build, train and prove hybrid language models with a memory that can be read twice."""
