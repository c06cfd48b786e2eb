"""Take data and models elsewhere: to other trainers, the hub, lmms-eval and browsers. Nothing imports this package."""
