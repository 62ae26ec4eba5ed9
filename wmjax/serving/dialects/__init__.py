"""The protocols that the server speaks, one file each; :data:`wmjax.serving.dialect.DIALECTS` names them."""
