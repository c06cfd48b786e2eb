"""Looking at the models: a report as one page, and a local page to browse views and ask about them."""
