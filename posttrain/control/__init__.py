"""Small domains with known answers: environments, oracles, quadrature, replay. Nothing is trained here."""
