"""The same app in many processes of many machines, by Ray Serve: ``serve run configs/serve/ray.yaml``."""
from typing import Any

from vilg.app.serving.server import ServerConfig, build_app
from vilg.errors import ConfigError


def application(args: dict[str, Any]) -> Any:
    """What ``import_path`` of a Ray Serve config names. ``args``: fields of
    :class:`~vilg.app.serving.server.ServerConfig`; host and port are Ray's own, and ``host`` here says by which name
    clients call them. Raises ConfigError for others."""
    from ray import serve

    try:
        config = ServerConfig(**args)
    except TypeError as error:
        raise ConfigError(f"args: {str(error).partition(') ')[2] or error}; they are fields of ServerConfig") from None
    config.check_settings()
    # Called in the process of every replica, which loads models of its own.
    return serve.deployment(serve.ingress(lambda: build_app(config))(), name="vilg").bind()
