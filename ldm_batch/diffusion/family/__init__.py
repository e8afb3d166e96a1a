"""diffusers' own text-to-image pipelines, behind the protocol of ours."""
