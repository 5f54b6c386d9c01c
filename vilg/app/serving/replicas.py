"""The same app in many processes of many machines, by Ray Serve: ``serve run configs/serve/ray.yaml``."""
from typing import Any

from vilg.app.serving.server import ServerConfig, build_app, keep_prompts_out_of_logs
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
    def replica() -> Any:  # called in the process of every replica, which loads models of its own
        keep_prompts_out_of_logs()
        return build_app(config)

    return serve.deployment(serve.ingress(replica)(), name="vilg").bind()
