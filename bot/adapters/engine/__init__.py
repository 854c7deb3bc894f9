"""Docker, idea by idea: names, walls, the network, a list, and the proof that all of it holds. `DockerEngine` puts them together."""
