"""The MuJoCo model of D4RL's ant in a maze, as XML.

Four identical legs at 45, 135, 225 and 315 degrees. Every number that affects the physics is that of D4RL's ant.xml and of
the walls added by its maze_env.py (commit 89141a6). Cameras and colours are jacrec's own.
"""

from jacrec.envs.antmaze_layout import CELL, Maze, centre

WALL_HEIGHT = 2.0
"""metres"""

# (x and y direction, name, sign of the ankle angles) of each leg, in joint order
LEGS = ((1, 1, "front_left", 1), (-1, 1, "front_right", -1), (-1, -1, "back", -1), (1, -1, "right_back", 1))
# legs in actuator order
ACTUATED = (4, 1, 2, 3)

_MODEL = """
<mujoco model="ant maze">
  <compiler angle="degree" inertiafromgeom="true"/>
  <option timestep="0.02" integrator="RK4"/>
  <visual>
    <headlight ambient="0.3 0.3 0.3" diffuse="0.2 0.2 0.2" specular="0 0 0"/>
    <map znear="0.02"/>
  </visual>
  <default>
    <joint limited="true" armature="1" damping="1"/>
    <geom condim="3" conaffinity="0" margin="0.01" friction="1 0.5 0.5" solref="0.02 1" solimp="0.8 0.8 0.01" density="5"/>
    <motor ctrllimited="true" ctrlrange="-30 30"/>
    <default class="ant">
      <geom rgba="0.85 0.55 0.3 1"/>
    </default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.9 0.95 1" rgb2="0.6 0.7 0.8" width="64" height="64"/>
    <texture name="tiles" type="2d" builtin="checker" rgb1="0.32 0.38 0.44" rgb2="0.27 0.33 0.39" width="128" height="128"/>
    <material name="wall" rgba="0.62 0.6 0.55 1" specular="0"/>
    <material name="tiles" texture="tiles" texrepeat="40 40" specular="0"/>
  </asset>
  <worldbody>
    <light directional="true" diffuse="0.5 0.5 0.5" specular="0 0 0" pos="0 0 20" dir="0.2 0.3 -1"/>
    <camera name="top" pos="{x} {y} {height}" fovy="45"/>
    <geom name="floor" type="plane" size="40 40 40" conaffinity="1" material="tiles"/>
{walls}
    <site name="goal" type="cylinder" size="0.5 0.01" pos="0 0 0.01" rgba="0.2 0.8 0.3 0.8"/>
    <body name="torso" pos="0 0 0.75" childclass="ant">
      <camera name="follow" mode="trackcom" pos="0 -7 9" xyaxes="1 0 0 0 0.8 0.6"/>
      <geom name="torso" type="sphere" size="0.25"/>
      <joint name="root" type="free" limited="false" margin="0.01" armature="0" damping="0"/>
{legs}
    </body>
  </worldbody>
  <actuator>
{motors}
  </actuator>
</mujoco>
"""

_LEG = """
      <body name="{name}_leg">
        <geom type="capsule" size="0.08" fromto="0 0 0 {hip} 0"/>
        <body pos="{hip} 0">
          <joint name="hip_{i}" type="hinge" axis="0 0 1" range="-30 30"/>
          <geom type="capsule" size="0.08" fromto="0 0 0 {hip} 0"/>
          <body pos="{hip} 0">
            <joint name="ankle_{i}" type="hinge" axis="{axis} 1 0" range="{low} {high}"/>
            <geom type="capsule" size="0.08" fromto="0 0 0 {foot} 0"/>
          </body>
        </body>
      </body>"""

_WALL = '    <geom name="wall_{i}_{j}" type="box" pos="{x} {y} {z}" size="{half} {half} {z}" conaffinity="1" material="wall"/>'


def ant_maze_xml(maze: Maze) -> str:
    """The XML model of the ant in a maze. Actuators are in D4RL's order: legs 4, 1, 2, 3, each with the hip before the ankle."""
    half = WALL_HEIGHT / 2
    walls = []
    for i, j in maze.wall_cells:
        x, y = centre((i, j))
        walls.append(_WALL.format(i=i, j=j, x=x, y=y, z=half, half=CELL / 2))
    motors = [f'    <motor joint="{joint}_{i}"/>' for i in ACTUATED for joint in ("hip", "ankle")]
    legs = [_leg(i, *leg) for i, leg in enumerate(LEGS, 1)]
    rows, columns = maze.free.shape
    x, y = centre((rows - 1, columns - 1)) / 2 - CELL / 2
    # camera height at which a 45 degree view covers the whole map with a margin
    height = 1.25 * CELL * max(rows, columns)
    return _MODEL.format(x=x, y=y, height=height, walls="\n".join(walls), legs="".join(legs), motors="\n".join(motors))


def _leg(i: int, x: int, y: int, name: str, sign: int) -> str:
    low, high = (30, 70) if sign > 0 else (-70, -30)
    return _LEG.format(i=i, name=name, hip=f"{0.2 * x} {0.2 * y}", foot=f"{0.4 * x} {0.4 * y}", axis=-x * y, low=low, high=high)
