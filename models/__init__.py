import utils  # noqa: F401  before paddle
