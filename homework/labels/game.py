"""List the kart and track identifiers of the course's data set."""

KARTS = tuple(
    "adiumy amanda beastie emule gavroche gnu hexley kiki konqi nolok pidgin puffy sara_the_racer sara_the_wizard "
    "suzanne tux wilber xue".split()
)
TRACKS = tuple(
    "abyss black_forest candela_city cocoa_temple cornfield_crossing fortmagma gran_paradiso_island hacienda "
    "lighthouse minigolf olivermath overworld ravenbridge_mansion sandtrack scotland snowmountain snowtuxpeak tutorial "
    "volcano_island xr591 zengarden".split()
)
REMOVED_KARTS = ("beastie", "hexley")  # not in the game from release 1.0 on
