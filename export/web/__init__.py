"""A static web page that runs TuxNano and CLIP in the browser."""
