"""diffusers' own pipelines, behind the protocol of ours."""
