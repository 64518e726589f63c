"""LiteLLM, loaded when it is first needed (seconds) and without a look at the network."""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache
from typing import Any


@cache
def litellm() -> Any:
    """The ``litellm`` module, set to be quiet: failures are logged by us, with keys cut out."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm as module

    module.suppress_debug_info = True
    module.drop_params = True
    module.disable_streaming_logging = True
    warnings.filterwarnings("ignore", "Pydantic serializer warnings")
    for name in ("LiteLLM", "LiteLLM Router"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return module


@cache
def encoding() -> Any:
    """OpenAI's ``cl100k_base`` tokenizer, the file of which LiteLLM carries."""
    litellm()
    from litellm.litellm_core_utils.default_encoding import encoding as bundled

    return bundled
