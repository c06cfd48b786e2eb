"""TuxNano, the bundled base model: a vision-language model of 16 million parameters in plain PyTorch.

An image goes through the vision encoder (`vision`), whose predictions the connector (`connector`) turns into tokens
for the language model (`language_model`); `model` joins the three, `processor` makes their inputs of images and
texts.
"""
